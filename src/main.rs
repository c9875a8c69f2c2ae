fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let dir = args.get(3).cloned().unwrap_or("./endstation-data".into());
    let settings =
        endstation::settings::Settings::load(None, endstation::config::process_env(), &[("storage.dir", &dir, "--data")])
            .unwrap();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    endstation::cli::run::main(&endstation::cli::run::Run { file: args[2].clone().into(), fresh: false }, &settings).into()
}
