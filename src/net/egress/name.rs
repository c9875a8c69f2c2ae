//! Host names: the one form in which they are compared and resolved, and those that belong to no public zone.
//!
//! A name that passes here means the same to every resolver as long as it is resolved as an absolute one: a search list must
//! not turn `kubernetes.default` into a name that was never checked.

/// Longest name in characters, without the dot at the end: RFC 1035, section 2.3.4.
const NAME_BYTES_MAX: usize = 253;
/// Longest label: the same section.
const LABEL_BYTES_MAX: usize = 63;

/// Names of metadata services. Their addresses are denied too; this is told before anything is asked of a resolver.
static METADATA: [&str; 6] = [
    "metadata.google.internal",
    "metadata.goog",
    "metadata.azure.internal",
    "metadata.oci.oraclecloud.com",
    "metadata.tencentyun.com",
    "api.metadata.cloud.ibm.com",
];

/// Zones of which no part is public, each with its rule.
static ZONES: [(&str, &str); 12] = [
    ("localhost", "name/localhost"),   // RFC 6761, section 6.3
    ("localdomain", "name/localhost"), // many an /etc/hosts
    ("local", "name/local"),           // RFC 6762
    ("internal", "name/internal"),     // reserved by ICANN for private use in 2024
    ("home.arpa", "name/private"),     // RFC 8375
    ("intranet", "name/private"),      // this and the next four: RFC 6762, appendix G
    ("private", "name/private"),
    ("corp", "name/private"),
    ("home", "name/private"),
    ("lan", "name/private"),
    ("svc", "name/cluster"), // Kubernetes, by the search list of every pod
    ("consul", "name/cluster"),
];

/// `domain` as it is compared and resolved: lower case, without the one dot that may end it. It must have been through IDNA.
///
/// What a resolver would take for a number is no name: `inet_aton`, which most resolvers still ask first, reads one to four
/// parts in decimal, octal or hex, so a name whose last label is a number is refused, as the URL standard does too.
pub(super) fn normal(domain: &str) -> Result<&str, &'static str> {
    let name = domain.strip_suffix('.').unwrap_or(domain);
    if name.len() > NAME_BYTES_MAX {
        return Err("name/length");
    }
    let mut last = "";
    for label in name.split('.') {
        if label.is_empty() || label.len() > LABEL_BYTES_MAX {
            return Err("name/label");
        }
        if !label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_')) {
            return Err("name/characters");
        }
        last = label;
    }
    if is_number(last) { Err("name/numeric") } else { Ok(name) }
}

/// The rule by which `name`, in normal form, is not public.
pub(super) fn rule(name: &str) -> Option<&'static str> {
    if METADATA.contains(&name) {
        return Some("name/metadata");
    }
    if let Some((_, rule)) = ZONES.iter().find(|(zone, _)| name == *zone || is_under(name, zone)) {
        return Some(rule);
    }
    (!name.contains('.')).then_some("name/single-label")
}

/// Whether `name` lies in `zone`, at any depth, and is not the zone itself.
pub(super) fn is_under(name: &str, zone: &str) -> bool {
    name.strip_suffix(zone).is_some_and(|labels| labels.ends_with('.'))
}

/// Whether `label` is decimal, octal or hexadecimal digits; `0x` alone is a zero to some.
pub(super) fn is_number(label: &str) -> bool {
    match label.strip_prefix("0x") {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => label.bytes().all(|byte| byte.is_ascii_digit()),
    }
}
