use super::*;
use crate::audit::*;
use crate::ids::*;
use crate::journal::*;
use crate::outcome::*;
use crate::step::EffectClass;
use bytes::Bytes;
use std::time::Instant;

fn step(log: &mut Log, n: u64, body: &[u8], outcome: &Outcome, audit: &AuditItem, headers: &[(Text, Text)]) {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&n.to_le_bytes());
    let head = Head { key: Key(key), partition: Partition(1), owner_epoch: 0 };
    let f = Fingerprint([1; 32]);
    let a = AskerId([2; 16]);
    log.accepted(head, &AcceptedRef { tenant: "tenant-1", fingerprint: &f, asker: &a, effect: EffectClass::Pure, effect_ceiling: None, block: "echo@1.0.0", config_epoch: 1, replay_of: None, deadline_ms: n, not_after_ms: n, received_ms: n, message: MessageRef { source: 3, sequence: n, since_ms: n, subject: "work.tenant-1", headers, body } });
    log.started(head, 1, 1, n);
    log.result(head, &ResultRef { tenant: "tenant-1", fingerprint: &f, asker: &a, block: "echo@1.0.0", outcome, audit });
    log.published(head, &a, n);
}

#[test]
#[ignore]
fn bench() {
    let outcome = Outcome { status: Status::Ok, effect: Effected::None, outputs: Bytes::from(vec![b'o'; 40]), fault: None, tries: 1, received_ms: 1, started_ms: 1, ended_ms: 1, ran_us: 1, queue_depth: 1, boot: 1 };
    let audit = AuditItem { kind: AuditKind::Outcome, wall_ms: 1, tenant_seq: 1, outcome_digest: [1; 32], actor: Text::from_static("worker"), config_epoch: 1 };
    let body = vec![b'x'; 120];
    let mut log = Log::default();
    let t = Instant::now();
    for n in 0..1_000_000u64 {
        step(&mut log, n, &body, &outcome, &audit, &[]);
        if n % 16 == 15 { log.clear(); }
    }
    println!("encode 4 frames: {} ns/step", t.elapsed().as_nanos() / 1_000_000);
    log.clear();
    step(&mut log, 1, &body, &outcome, &audit, &[]);
    println!("bytes/step {}", log.bytes.len());
    log.clear();
    let dir = std::env::var("BENCH_DIR").map(|d| tempfile::TempDir::new_in(d).unwrap()).unwrap_or_else(|_| tempfile::TempDir::new().unwrap());
    println!("{:?}", measure(dir.path()).unwrap());
    let settings = DiskSettings { dir: dir.path().to_owned(), generation: 1, shard: 0, shards: 1, worker_id: "w".into(), salt: Salt([1; 32]), segment_bytes: 64 << 20 };
    let s2 = settings.clone();
    glommio::LocalExecutorBuilder::default().preempt_timer(std::time::Duration::from_millis(2)).make().unwrap().run(async move {
        let t = Instant::now();
        let o = Disk::open(settings, |_, _| Ok(())).await.unwrap();
        println!("open empty {:?}", t.elapsed());
        let disk = o.disk;
        glommio::spawn_local(disk.clone().run()).detach();
        for window in [1u64, 8, 64, 512, 4096] {
            let secs = 2.0;
            let (mut sent, mut done) = (0u64, 0u64);
            let base = disk.durable().0;
            let t = Instant::now();
            let mut stamps = VecDeque::new();
            let mut lat = Vec::new();
            while t.elapsed().as_secs_f64() < secs {
                while sent - done < window {
                    step(&mut log, sent, &body, &outcome, &audit, &[]);
                    sent += 1;
                    log.urgent = true;
                    disk.append(&mut log);
                    stamps.push_back(Instant::now());
                }
                if let News::Durable { through } = disk.news().await {
                    let d = (through.0 - base) / 4;
                    while done < d { lat.push(stamps.pop_front().unwrap().elapsed().as_micros() as u64); done += 1; }
                }
            }
            lat.sort_unstable();
            println!("window {window}: {:.0} steps/s p50 {} p99 {} p99.9 {} max {} us", done as f64 / t.elapsed().as_secs_f64(), lat[lat.len() / 2], lat[lat.len() * 99 / 100], lat[lat.len() * 999 / 1000], lat[lat.len() - 1]);
        }
        // paced 500/s, 5000/s
        for gap_us in [2000u64, 200] {
            let mut lat = Vec::new();
            let base = Instant::now();
            let mut n = 0u64;
            while base.elapsed().as_secs_f64() < 2.0 {
                n += 1;
                while (base.elapsed().as_micros() as u64) < n * gap_us { glommio::timer::sleep(std::time::Duration::from_micros(gap_us.min(500))).await; }
                let t = Instant::now();
                step(&mut log, n, &body, &outcome, &audit, &[]);
                log.urgent = true;
                let l = disk.append(&mut log);
                while disk.durable() < l { disk.news().await; }
                lat.push(t.elapsed().as_micros() as u64);
            }
            lat.sort_unstable();
            println!("paced {gap_us} us: p50 {} p99 {} max {} us", lat[lat.len() / 2], lat[lat.len() * 99 / 100], lat[lat.len() - 1]);
        }
        disk.close().await;
        let mut bytes = 0;
        let t = Instant::now();
        let mut keys = 0u64;
        let o = Disk::open(s2, |_, view| {
            bytes += view.raw().len();
            match view.peek()? {
                Peek::Accepted(p) => keys += p.since_ms & 1,
                Peek::Result(p) => keys += p.tenant_seq & 1,
                _ => keys += u64::from(view.key().0[0] & 1),
            }
            Ok(())
        }).await.unwrap();
        let e = t.elapsed().as_secs_f64();
        println!("recover {} records {} MB in {:.2} s: {:.2} M/s ({keys})", o.records, bytes >> 20, e, o.records as f64 / e / 1e6);
    });
}
