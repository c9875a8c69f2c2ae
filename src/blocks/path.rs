//! Which paths a blob may have: a pure rule, applied before acceptance and again where files are opened.

/// Longest path, in bytes.
const PATH_BYTES_MAX: usize = 1024;
/// Longest component, in bytes: what Linux file systems take.
const COMPONENT_BYTES_MAX: usize = 255;
/// Most components: each new folder costs a sync.
const COMPONENTS_MAX: usize = 32;

/// The folder of ours in which the runtime keeps outputs that are too large for a result.
const OUTPUTS: &str = "$outputs/";

/// The rule that `path` breaks, for a path that a tenant names. Components that begin with `$` are ours.
///
/// # Errors
/// The rule.
pub fn check(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("not empty");
    }
    if path.len() > PATH_BYTES_MAX {
        return Err("at most 1024 bytes");
    }
    if path.starts_with('/') {
        return Err("relative");
    }
    if path.bytes().any(|byte| byte < b' ' || byte == 0x7f || byte == b'\\') {
        return Err("no control characters and no backslash");
    }
    let mut components = 0;
    for component in path.split('/') {
        components += 1;
        match component {
            "" => return Err("no empty component and no slash at the end"),
            "." | ".." => return Err("no component . or .."),
            _ if component.starts_with('$') => return Err("no component beginning with $"),
            _ if component.len() > COMPONENT_BYTES_MAX => return Err("components of at most 255 bytes"),
            _ => {}
        }
    }
    if components > COMPONENTS_MAX {
        return Err("at most 32 components");
    }
    Ok(())
}

/// The same for a path that the worker itself may name too: `$outputs/…` is open.
pub(super) fn check_ours(path: &str) -> Result<(), &'static str> {
    check(path.strip_prefix(OUTPUTS).unwrap_or(path))
}
