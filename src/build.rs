//! Build script: what `/_build` and `--version` say of the compiler.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=src/build.rs");
    let var = |name: &str| std::env::var(name).unwrap_or_default();
    let asked = Command::new(var("RUSTC")).arg("--version").output();
    let rustc = asked.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    println!("cargo:rustc-env=ENDSTATION_RUSTC={rustc}");
    println!("cargo:rustc-env=ENDSTATION_PROFILE={}", var("PROFILE"));
    println!("cargo:rustc-env=ENDSTATION_TARGET={}", var("TARGET"));
}
