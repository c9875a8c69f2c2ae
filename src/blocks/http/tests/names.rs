//! Names and their addresses, from a name server that the tests script: what is connected to is what was checked.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Mutex;

use super::*;
use crate::net::egress::Allow;

/// What a name server says of a name, in turn; the last for good.
#[derive(Clone)]
enum Says {
    /// These addresses.
    Addresses(Vec<Ipv4Addr>),
    /// There is no such name.
    Nothing,
    /// It does not know.
    Failure,
    /// It says nothing at all.
    Silence,
}

/// A name server on a thread of its own, and how often it was asked for each name's IPv4 addresses.
struct NameServer {
    address: SocketAddr,
    asked: Arc<Mutex<HashMap<String, usize>>>,
}

impl NameServer {
    fn start(names: &[(&str, Vec<Says>)]) -> NameServer {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("bound");
        let asked = Arc::new(Mutex::new(HashMap::new()));
        let kept = asked.clone();
        let names: HashMap<String, Vec<Says>> = names.iter().map(|(name, says)| ((*name).to_owned(), says.clone())).collect();
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((bytes, from)) = socket.recv_from(&mut query) {
                let (name, end) = name_in(&query[..bytes]);
                let wants_v4 = query[end..end + 2] == [0, 1];
                let count = {
                    let mut asked = kept.lock().expect("no panic holds it");
                    let count = asked.entry(name.clone()).or_insert(0);
                    *count += usize::from(wants_v4);
                    count.saturating_sub(1)
                };
                let says = names.get(&name).map_or(&Says::Nothing, |says| &says[count.min(says.len() - 1)]);
                if let Some(answer) = answer(&query[..end + 4], says, wants_v4) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        NameServer { address, asked }
    }

    fn asked(&self, name: &str) -> usize {
        self.asked.lock().expect("no panic holds it").get(name).copied().unwrap_or(0)
    }
}

/// The name of a query's question, and where its type stands.
fn name_in(query: &[u8]) -> (String, usize) {
    let (mut name, mut at) = (String::new(), 12);
    while query[at] != 0 {
        let length = usize::from(query[at]);
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(&String::from_utf8_lossy(&query[at + 1..=at + length]).to_ascii_lowercase());
        at += length + 1;
    }
    (name, at + 1)
}

fn answer(question: &[u8], says: &Says, wants_v4: bool) -> Option<Vec<u8>> {
    let (code, addresses) = match says {
        Says::Addresses(addresses) if wants_v4 => (0, addresses.as_slice()),
        Says::Addresses(_) => (0, [].as_slice()),
        Says::Nothing => (3, [].as_slice()),
        Says::Failure => (2, [].as_slice()),
        Says::Silence => return None,
    };
    let mut out = question.to_vec();
    // A response, recursion wanted and had; one question, so many answers, nothing else.
    out[2..12].copy_from_slice(&[0x81, 0x80 | code, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
    for address in addresses {
        // The question's name, type A, class IN, a time of nothing, four bytes.
        out.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        out.extend_from_slice(&address.octets());
    }
    Some(out)
}

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const AWAY: Ipv4Addr = Ipv4Addr::new(1, 1, 1, 1);

#[test]
fn every_address_of_a_name_is_checked_and_nothing_else_is_connected_to() {
    on_a_shard(|blobs, _| async move {
        let server = Server::always(Act::answer("200 OK", "connection: close\r\n", "there"));
        let port = server.address.port();
        let private = Ipv4Addr::new(10, 0, 0, 1);
        let names = NameServer::start(&[
            ("good.example.com", vec![Says::Addresses(vec![HERE])]),
            ("turns.example.com", vec![Says::Addresses(vec![HERE]), Says::Addresses(vec![private])]),
            ("mixed.example.com", vec![Says::Addresses(vec![AWAY, private])]),
            ("meta.example.com", vec![Says::Addresses(vec![Ipv4Addr::new(169, 254, 169, 254)])]),
            ("broken.example.com", vec![Says::Failure]),
            ("silent.example.com", vec![Says::Silence]),
        ]);
        // The connector opens this machine, so that a name may lead here; nothing else that is not public.
        let mut settings = PolicySettings { dns: vec![names.address], ..PolicySettings::default() };
        let open = ConnectorSettings {
            tenants: None,
            url: None,
            allow: vec![Allow::parse("127.0.0.0/8").expect("a network")],
            auth: Auth::None,
            idempotency_key: false,
            provider: None,
            tls: Default::default(),
            direct: false,
        };
        settings.connectors.insert("any".to_owned(), open);
        settings.grants.insert("acme".to_owned(), vec![Scope::Http]);
        let reach = reach(Policy::new(settings, false).expect("nothing to read"));
        let to =
            |name: &str| json!({ "connector": "any", "url": format!("http://{name}.example.com:{port}/"), "connect_ms": 400 });

        let outputs = ask(&reach, &blobs, to("good")).await.expect("there");
        assert_eq!(outputs["url"], format!("http://good.example.com:{port}/"));
        let host = format!("host: good.example.com:{port}\r\n");
        assert!(server.heard()[0].contains(&host), "{:?}", server.heard());
        assert_eq!(names.asked("good.example.com"), 1, "looked up once for one request");
        // Without the connector the same name leads to no public place.
        let direct = json!({ "url": format!("http://good.example.com:{port}/") });
        let fault = ask(&reach, &blobs, direct).await.expect_err("loopback");
        assert!(details(&fault)["rule"].as_str().is_some_and(|rule| rule.starts_with("egress loopback")), "{fault:?}");

        // A name that turns: the second answer is checked like the first.
        assert!(ask(&reach, &blobs, to("turns")).await.is_ok());
        let before = server.connections();
        for (name, code, words) in [
            ("turns", Code::PermissionDenied, "egress private"),
            ("mixed", Code::PermissionDenied, "egress private"),
            ("meta", Code::PermissionDenied, "egress metadata"),
            ("nowhere", Code::ConnectionError, "there is no such name"),
            ("broken", Code::ConnectionError, "the resolver"),
            ("silent", Code::ConnectionError, "connect"),
        ] {
            let mut inputs = to(name);
            inputs["text"] = json!("x");
            let fault = ask(&reach, &blobs, inputs).await.expect_err(name);
            assert_eq!((fault.code, fault.effect), (code, Effected::None), "{name}: {}", details(&fault));
            assert!(details(&fault).to_string().contains(words), "{name}: {}", details(&fault));
        }
        assert_eq!(server.connections(), before, "nothing was connected to");
    });
}
