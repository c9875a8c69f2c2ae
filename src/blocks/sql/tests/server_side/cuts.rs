//! The connection cut at every byte of a write, each way: no row twice, no "done" without its row, no "nothing happened" with it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use super::*;

/// A proxy before a server that cuts one connection after so many bytes one way, and lets everything else pass.
struct Cutter {
    port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Bytes that pass, out and in, on the connection that is to be cut.
    at: [AtomicU64; 2],
    armed: AtomicBool,
    /// What passed on that connection, and what had when the second flight began.
    passed: [AtomicU64; 2],
    second: Mutex<Option<[u64; 2]>>,
    cuts: AtomicU64,
}

impl Cutter {
    fn start(server: u16) -> Cutter {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let state = Arc::new(State::default());
        let shared = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(upstream) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)) else { continue };
                let first = shared.armed.swap(false, SeqCst);
                let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
                let copy = |stream: &TcpStream| stream.try_clone().expect("a stream");
                let (c, u, s) = (copy(&client), copy(&upstream), shared.clone());
                std::thread::spawn(move || carry(0, c, u, first, &s));
                let s = shared.clone();
                std::thread::spawn(move || carry(1, upstream, client, first, &s));
            }
        });
        Cutter { port, state }
    }

    /// The next connection is cut once so many bytes have gone out, or come in.
    fn arm(&self, out: u64, back: u64) {
        let state = &self.state;
        state.at[0].store(out, SeqCst);
        state.at[1].store(back, SeqCst);
        state.passed.iter().for_each(|passed| passed.store(0, SeqCst));
        *state.second.lock().expect("whole") = None;
        state.armed.store(true, SeqCst);
    }
}

fn carry(way: usize, mut from: TcpStream, mut to: TcpStream, first: bool, state: &State) {
    let mut buffer = [0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let mut end = read;
        if first {
            if way == 0 && buffer[..read].windows(6).any(|part| part == b"COMMIT") {
                let both = [state.passed[0].load(SeqCst), state.passed[1].load(SeqCst)];
                state.second.lock().expect("whole").get_or_insert(both);
            }
            let before = state.passed[way].load(SeqCst);
            end = (read as u64).min(state.at[way].load(SeqCst).saturating_sub(before)) as usize;
            state.passed[way].store(before + end as u64, SeqCst);
        }
        if to.write_all(&buffer[..end]).is_err() {
            break;
        }
        if first && end < read {
            state.cuts.fetch_add(1, SeqCst);
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[test]
fn a_connection_that_is_cut_at_any_byte_of_a_write_costs_no_row_and_makes_none_twice() {
    let server = Server::start();
    init(&server);
    server.ask("CREATE TABLE t (n int); GRANT ALL ON t TO worker");
    let cutter = Cutter::start(server.port());
    on_a_shard(|blobs, root| async move {
        let direct = with(crm(server.port(), |_, _| {}), &root);
        let put = |n: u64| on_crm(write("INSERT INTO t VALUES ($1) RETURNING n", json!([n])));
        // A step of its own for each cut, on a pool of its own: what passes is the same each time.
        let run = async |n: u64, out: u64, back: u64| {
            let reach = with(crm(cutter.port, |_, server| server.connections_max = 2), &root);
            cutter.arm(out, back);
            (Numbered(n).run(&reach, &blobs, put(n)).await, reach)
        };
        let count = async |n: u64| {
            let counted = on_crm(read("SELECT count(*) AS c FROM t WHERE n = $1", json!([n])));
            let rows = Step::default().run(&direct, &blobs, counted).await;
            rows.expect("counted")["rows"][0]["c"].as_u64().expect("a number")
        };
        let (done, _reach) = run(0, u64::MAX, u64::MAX).await;
        done.expect("nothing is cut");
        let second = cutter.state.second.lock().expect("whole").expect("it was seen");
        let total = [cutter.state.passed[0].load(SeqCst), cutter.state.passed[1].load(SeqCst)];
        // The first flight as well, with what it prepares: before that nothing can have happened.
        let first = [second[0].saturating_sub(250), second[1].saturating_sub(80)];
        let (mut cuts, mut ok, mut none, mut unknown, mut again) = (0_u64, 0_u64, 0_u64, 0_u64, 0_u64);
        let (mut doubles, mut untrue) = (0, 0);
        let outs = (first[0]..=total[0]).map(|at| (at, u64::MAX));
        let backs = (first[1]..=total[1]).map(|at| (u64::MAX, at));
        for (out, back) in outs.chain(backs) {
            cuts += 1;
            let n = cuts;
            let (done, reach) = run(n, out, back).await;
            let rows = count(n).await;
            doubles += u64::from(rows > 1);
            let retry = match &done {
                Ok(_) => {
                    ok += 1;
                    untrue += u64::from(rows != 1);
                    false
                }
                Err(fault) if fault.effect == Effected::None => {
                    none += 1;
                    untrue += u64::from(rows != 0);
                    assert!(fault.code.retryable(), "{fault:?}");
                    true
                }
                Err(fault) => {
                    unknown += 1;
                    assert!(fault.code.retryable(), "{fault:?}");
                    true
                }
            };
            if retry {
                again += 1;
                Numbered(n).run(&reach, &blobs, put(n)).await.expect("the way is free");
            }
            let rows = count(n).await;
            doubles += u64::from(rows > 1);
            untrue += u64::from(rows != 1);
        }
        let seen = cutter.state.cuts.load(SeqCst);
        eprintln!(
            "{cuts} cuts ({seen} of them made): {ok} ok, {none} without effect, {unknown} unknown, {again} tried again; \
             {doubles} double writes, {untrue} untrue answers"
        );
        assert_eq!((doubles, untrue), (0, 0));
        assert!(cuts >= 500 && seen + 10 >= cuts, "{cuts} {seen}");
        assert_eq!(server.ask("SELECT count(*) FROM t"), (cuts + 1).to_string());
    });
}

/// A step whose key is a number.
struct Numbered(u64);

impl Numbered {
    async fn run(&self, reach: &Reach, blobs: &Rc<LocalBlobs>, inputs: Value) -> Result<Value, Fault> {
        let (id, _) = find("sql.query", true).expect("a block");
        let mut key = [7; 16];
        key[..8].copy_from_slice(&self.0.to_le_bytes());
        let cx = BlockCx {
            tenant: Text::from_static("acme"),
            key: Key(key),
            try_number: 1,
            left_ms: 30_000,
            needs: Needs::default(),
            inputs: inputs.to_string().into(),
            blobs: blobs.clone(),
            guardrails: Default::default(),
            cache: None,
            trace_id: None,
            observers: None,
        };
        let outputs = build_all(reach)[usize::from(id.0)].execute(cx).await?;
        Ok(serde_json::from_slice(&outputs).expect("JSON"))
    }
}
