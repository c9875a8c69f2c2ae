//! The approval page: one step that waits for people, shown to one of them, who decides by a form. Plain HTML, no script.
//!
//! Whoever has a link is the person that it names, for the one step that it names, until its time is over: the link is signed with a
//! key of the deployment, and holds nothing else. So there is no session, and nothing that another site could make a browser send
//! along. Looking changes nothing; only the form's POST does, once, for a person's first word stands.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use sha2::Sha256;
use shards::ids::{Key, Salt};
use shards::limits::ID_BYTES_MAX;

use super::people::{self, People};

/// Where the page lies.
pub const PATH: &str = "/approvals/";
/// What a browser is told to keep to.
pub const CONTENT_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
/// The largest form that is read, in bytes.
pub const FORM_BYTES_MAX: usize = 8 << 10;
/// Longest comment, in bytes.
const COMMENT_BYTES_MAX: usize = 1_024;
/// Distinguishes what the deployment's secret is used for.
const PURPOSE: &[u8] = b"endstation approval link v1\0";

/// Makes and reads links. Crosses threads.
#[derive(Clone)]
pub struct Links {
    salt: Salt,
}

/// What a link says. Crosses threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Which step.
    pub key: Key,
    /// Who decides by it.
    pub actor: String,
    /// Not after, Unix ms.
    pub until_ms: u64,
}

/// What a browser gets. Crosses threads.
#[derive(Debug, PartialEq, Eq)]
pub struct Shown {
    /// The HTTP status.
    pub status: u16,
    /// HTML.
    pub html: String,
}

impl Links {
    /// Links of this deployment.
    pub fn new(salt: Salt) -> Links {
        Links { salt }
    }

    /// The last part of a link's path.
    pub fn write(&self, link: &Link) -> String {
        let mut token = link.key.0.to_vec();
        token.extend_from_slice(&link.until_ms.to_be_bytes());
        token.extend_from_slice(link.actor.as_bytes());
        let mac = self.mac(&token).finalize().into_bytes();
        token.extend_from_slice(&mac);
        BASE64.encode(token)
    }

    /// What a link says, if it is one of ours; its time is the caller's to look at.
    pub fn read(&self, token: &str) -> Option<Link> {
        if token.len() > 2 * (ID_BYTES_MAX + 64) {
            return None;
        }
        let bytes = BASE64.decode(token).ok()?;
        let (said, mac) = bytes.split_last_chunk::<32>()?;
        self.mac(said).verify_slice(mac).ok()?;
        let (key, rest) = said.split_first_chunk::<16>()?;
        let (until, actor) = rest.split_first_chunk::<8>()?;
        let actor = String::from_utf8(actor.to_vec()).ok()?;
        Some(Link { key: Key(*key), actor, until_ms: u64::from_be_bytes(*until) })
    }

    fn mac(&self, said: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.salt.0).expect("HMAC takes keys of any length");
        mac.update(PURPOSE);
        mac.update(said);
        mac
    }
}

/// Answers a GET (`form` is none) or the POST of a form. Blocks: it asks the shards.
pub fn answer(links: &Links, people: &People, token: &str, form: Option<&[u8]>, now_ms: u64) -> Shown {
    let Some(link) = links.read(token) else {
        return told(404, "No such link", "This link is not one of ours, or a part of it is missing.");
    };
    if now_ms > link.until_ms {
        return told(410, "The link is too old", "Its time is over. Ask for another one.");
    }
    let waiting = match people.waiting(Some(link.key), 1) {
        Ok(waiting) => waiting,
        Err(error) => return told(503, "Not now", &format!("{error}. Try again.")),
    };
    let Some(waiting) = waiting.first() else {
        return told(410, "Nothing is asked any more", "It was decided, or withdrawn, or its worker is another one now.");
    };
    let row = people::row(waiting);
    let word = waiting.votes.iter().find(|vote| *vote.actor == *link.actor);
    if let Some(word) = word {
        let said = if word.approve { "approved" } else { "rejected" };
        return told(
            409,
            "You have decided",
            &format!("You {said} this before, and a first word stands. Others are still asked."),
        );
    }
    let Some(form) = form else { return Shown { status: 200, html: ask(&row, &link, "") } };
    let fields: Vec<(String, String)> = url::form_urlencoded::parse(form).into_owned().collect();
    let field = |name: &str| fields.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value.as_str());
    let approve = match field("decision") {
        "approve" => true,
        "reject" => false,
        _ => return Shown { status: 400, html: ask(&row, &link, "Choose one of the two.") },
    };
    let comment = field("comment");
    if comment.len() > COMMENT_BYTES_MAX {
        return Shown { status: 400, html: ask(&row, &link, "The comment is too long: at most 1024 bytes.") };
    }
    // What was shown is what is decided.
    let plan = row["plan_digest"].as_str();
    let signal = people::signal(&row, approve, Some(&link.actor), comment, plan);
    let reply = match people.say(&waiting.tenant, Vec::new(), Bytes::from(signal.to_string())) {
        Ok(reply) => serde_json::from_slice::<Value>(&reply).unwrap_or_default(),
        Err(error) => return told(503, "Not known", &format!("{error}. Look again whether your word was heard.")),
    };
    match reply["disposition"].as_str() {
        Some("NOTED") => {
            let said = if approve { "approved" } else { "rejected" };
            told(200, "Noted", &format!("You {said} this. It is kept, and you need do nothing more."))
        }
        Some("DUPLICATE") => told(409, "You have decided", "You spoke before, and a first word stands."),
        Some("ALREADY_ENDED" | "NOT_FOUND") => told(409, "Too late", "It was decided meanwhile."),
        _ => told(403, "Not heard", reply["error"]["message"].as_str().unwrap_or("The worker did not take it.")),
    }
}

/// The question, with its form.
fn ask(row: &Value, link: &Link, fault: &str) -> String {
    let text = |name: &str| escaped(row[name].as_str().unwrap_or_default());
    let mut main = format!("<h1>{}</h1>", text("title"));
    if !fault.is_empty() {
        main.push_str(&format!("<p role=\"alert\" class=\"fault\">{}</p>", escaped(fault)));
    }
    if row["text"].is_string() {
        main.push_str(&format!("<p class=\"text\">{}</p>", text("text")));
    }
    if let Some(details) = row.get("details") {
        let pretty = serde_json::to_string_pretty(details).unwrap_or_default();
        main.push_str(&format!("<pre>{}</pre>", escaped(&pretty)));
    }
    let names: Vec<&str> = row["approvers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let overdue = match row["on_timeout"].as_str() {
        Some("approve") => "it counts as approved",
        Some("escalate") => "others are asked",
        _ => "it counts as rejected",
    };
    // Words of those who were asked before others were do not count here.
    let asked = |vote: &&Value| names.iter().any(|name| *name == "*" || vote["actor"] == **name);
    let votes = row["votes"].as_array().into_iter().flatten().filter(asked).count();
    main.push_str("<dl>");
    let mut say = |name: &str, value: &str| main.push_str(&format!("<dt>{name}</dt><dd>{}</dd>", escaped(value)));
    say("You are", &link.actor);
    say("For", row["tenant"].as_str().unwrap_or_default());
    say("Asked", &names.join(", "));
    say("Approvals", &format!("{votes} of {}", row["quorum"]));
    say("Until", row["until"].as_str().unwrap_or_default());
    say("Then", overdue);
    if let Some(plan) = row["plan_digest"].as_str() {
        say("Plan", plan);
    }
    main.push_str("</dl>");
    if row["signed"] == true {
        main.push_str(
            "<p class=\"fault\">This one takes only signed decisions: <code>endstation approval approve --signer</code>.</p>",
        );
    } else {
        main.push_str(
            "<form method=\"post\"><label for=\"comment\">Why (kept with your decision)</label>\
             <textarea id=\"comment\" name=\"comment\" rows=\"3\" maxlength=\"1024\"></textarea>\
             <div><button name=\"decision\" value=\"approve\" class=\"yes\">Approve</button> \
             <button name=\"decision\" value=\"reject\" class=\"no\">Reject</button></div></form>",
        );
    }
    page(row["title"].as_str().unwrap_or("Approval"), &main)
}

fn told(status: u16, title: &str, text: &str) -> Shown {
    Shown { status, html: page(title, &format!("<h1>{}</h1><p>{}</p>", escaped(title), escaped(text))) }
}

fn page(title: &str, main: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"robots\" content=\"noindex\">\
         <title>{}</title><style>{STYLE}</style></head><body><main>{main}</main></body></html>",
        escaped(title)
    )
}

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:16px/1.5 system-ui,sans-serif;margin:0;background:#f4f4f2;color:#1c1c1a}\
main{max-width:38rem;margin:2rem auto;padding:1.5rem 2rem;background:#fff;border:1px solid #d8d8d4;border-radius:8px}\
h1{font-size:1.35rem;margin:0 0 .75rem}pre,.text{white-space:pre-wrap;overflow-wrap:anywhere}\
pre{background:#f4f4f2;padding:.75rem;border-radius:6px;font-size:.875rem}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1rem}dt{color:#66665f}dd{margin:0;overflow-wrap:anywhere}\
label{display:block;margin-bottom:.25rem}textarea{width:100%;box-sizing:border-box;font:inherit;padding:.5rem}\
button{font:inherit;padding:.5rem 1.25rem;margin-top:.75rem;border-radius:6px;border:1px solid transparent;cursor:pointer}\
.yes{background:#1d6b3a;color:#fff}.no{background:#fff;color:#9b1c1c;border-color:#9b1c1c}.fault{color:#9b1c1c}\
@media(prefers-color-scheme:dark){body{background:#161615;color:#ecece8}main{background:#20201e;border-color:#3a3a37}\
pre{background:#161615}dt{color:#a5a59d}.no{background:#20201e;color:#f08a8a;border-color:#f08a8a}.fault{color:#f08a8a}}";

/// A text where HTML expects text or an attribute's value.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // What would turn the rest of the line around reads as something else than it is.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.push('\u{fffd}'),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Key = Key([7; 16]);

    fn link() -> Link {
        Link { key: LINK, actor: "ann".to_owned(), until_ms: 1_000 }
    }

    #[test]
    fn a_link_says_what_was_written_and_no_bent_one_says_anything() {
        let links = Links::new(Salt([1; 32]));
        let token = links.write(&link());
        assert_eq!(links.read(&token), Some(link()));
        assert_eq!(Links::new(Salt([2; 32])).read(&token), None, "another deployment's");
        let mut bent = 0;
        for at in 0..token.len() {
            let mut other = token.clone().into_bytes();
            other[at] = if other[at] == b'A' { b'B' } else { b'A' };
            let other = String::from_utf8(other).expect("ASCII");
            // The last character has bits that stand for nothing.
            assert!(links.read(&other).is_none_or(|read| read == link()), "{other}");
            bent += usize::from(links.read(&other).is_none());
        }
        assert!(bent >= token.len() - 1);
        for junk in ["", "A", "....", &"A".repeat(4_096), &token[..token.len() - 1]] {
            assert_eq!(links.read(junk), None, "{junk}");
        }
    }

    #[test]
    fn nothing_that_somebody_wrote_is_taken_for_html() {
        let row = serde_json::json!({
            "title": "<script>alert(1)</script>", "text": "a & b \"c\" \u{202e}d", "details": {"x": "</pre><img src=x onerror=y>"},
            "approvers": ["<b>"], "quorum": 1, "tenant": "acme", "until": "soon", "on_timeout": "reject", "votes": [],
        });
        let html = ask(&row, &Link { actor: "<i>ann</i>".to_owned(), ..link() }, "");
        for raw in ["<script", "<img", "<b>", "<i>", "\u{202e}"] {
            assert!(!html.contains(raw), "{raw} in {html}");
        }
        assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && html.contains("a &amp; b &quot;c&quot;"), "{html}");
    }

    #[test]
    fn only_words_of_those_who_are_asked_now_are_counted() {
        for (approvers, counted) in [(serde_json::json!(["boss", "chief"]), "1 of 2"), (serde_json::json!(["*"]), "2 of 2")] {
            let votes = serde_json::json!([{"actor": "ann"}, {"actor": "boss"}]);
            let row = serde_json::json!({"title": "t", "approvers": approvers, "quorum": 2, "votes": votes});
            assert!(ask(&row, &link(), "").contains(counted), "{row}");
        }
    }

    #[test]
    fn a_link_that_is_none_or_too_old_shows_nothing_of_any_step() {
        let (links, people) = (Links::new(Salt([1; 32])), People::new(Vec::new()));
        assert_eq!(answer(&links, &people, "junk", None, 5).status, 404);
        let token = links.write(&link());
        assert_eq!(answer(&links, &people, &token, None, 1_001).status, 410);
        assert_eq!(answer(&links, &people, &token, None, 1_000).status, 410, "nothing waits");
    }
}
