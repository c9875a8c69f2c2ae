//! Outputs of pure steps that say they may be used again (`cache`), by tenant: [`Cache`] holds them on their shard, and [`Cached`] is
//! a block that looks there first.
//!
//! What was kept is given to a step of the same tenant, block, inputs, guardrails and name of its own choosing, for as long as both
//! the step that brought it and the step that asks allow. Failures are not kept. A tenant has a bound of its own, and another's steps
//! never put out what it keeps; where all of them together are too many bytes for a shard, the tenant that has asked for
//! nothing for the longest time loses all of its own.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use quick_cache::Weighter;
use shards::block::{Block, BlockCx, BlockInfo, Local};
use shards::ids::{BlockId, Text};
use shards::outcome::Fault;
use shards::runtime::rt::Clock;

use super::{TABLE, is_paid_for};

/// Counted for each entry besides its outputs, in bytes.
const ENTRY_BYTES: u64 = 128;
/// Counted for each tenant that keeps anything, in bytes.
const DRAWER_BYTES: u64 = 1 << 10;
/// An entry takes no more than this part of what its tenant may keep.
const ENTRY_PART: u64 = 4;

/// The block of this id whose steps look into the cache first: these stand behind those of the table and those by reference.
pub fn id_of(block: BlockId) -> BlockId {
    BlockId(block.0 + 2 * TABLE.len() as u16)
}

/// How much is kept. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    /// By one tenant, in bytes; 0: nothing.
    pub tenant_bytes_max: u64,
    /// By all of a shard's together, in bytes.
    pub shard_bytes_max: u64,
}

impl Default for CacheSettings {
    fn default() -> Self {
        CacheSettings { tenant_bytes_max: 4 << 20, shard_bytes_max: 64 << 20 }
    }
}

/// What came of looking, over all shards. Crosses cores.
#[derive(Debug, Default)]
pub struct CacheCounts {
    /// Outputs that were there.
    pub hits: AtomicU64,
    /// Outputs that were not, or not any more.
    pub misses: AtomicU64,
}

/// What a shard keeps. Lives on its core.
pub struct Cache {
    settings: CacheSettings,
    clock: Clock,
    counts: Arc<CacheCounts>,
    tenants: RefCell<HashMap<Text, Drawer>>,
    /// All that is counted, in bytes.
    bytes: Cell<u64>,
}

/// One tenant's.
struct Drawer {
    kept: quick_cache::unsync::Cache<[u8; 32], Kept, Weight>,
    used_us: u64,
}

#[derive(Clone)]
struct Kept {
    outputs: Bytes,
    since_us: u64,
    until_us: u64,
}

#[derive(Clone)]
struct Weight;

impl Weighter<[u8; 32], Kept> for Weight {
    fn weight(&self, _: &[u8; 32], kept: &Kept) -> u64 {
        kept.outputs.len() as u64 + ENTRY_BYTES
    }
}

impl Cache {
    /// An empty one.
    pub fn new(settings: CacheSettings, clock: Clock, counts: Arc<CacheCounts>) -> Cache {
        Cache { settings, clock, counts, tenants: RefCell::default(), bytes: Cell::new(0) }
    }

    /// What is kept under this name and is no older than that.
    fn find(&self, tenant: &Text, id: &[u8; 32], ttl_ms: u64) -> Option<Bytes> {
        let now_us = self.clock.now().mono_us;
        let mut tenants = self.tenants.borrow_mut();
        let drawer = tenants.get_mut(tenant);
        let found = drawer.and_then(|drawer| {
            drawer.used_us = now_us;
            let kept = drawer.kept.get(id)?;
            let fresh = now_us < kept.until_us && now_us < kept.since_us.saturating_add(ttl_ms * 1000);
            if fresh { Some(kept.outputs.clone()) } else { None }
        });
        let count = if found.is_some() { &self.counts.hits } else { &self.counts.misses };
        count.fetch_add(1, Relaxed);
        found
    }

    fn keep(&self, tenant: &Text, id: [u8; 32], outputs: &Bytes, ttl_ms: u64) {
        let most = self.settings.tenant_bytes_max.min(self.settings.shard_bytes_max);
        if outputs.len() as u64 + ENTRY_BYTES > most / ENTRY_PART {
            return;
        }
        let now_us = self.clock.now().mono_us;
        let mut tenants = self.tenants.borrow_mut();
        if !tenants.contains_key(tenant) {
            let kept = quick_cache::unsync::Cache::with_weighter((most / (4 * ENTRY_BYTES)) as usize, most, Weight);
            // Copies, here and below: what is given may be a piece of something larger.
            tenants.insert(Text::from(&**tenant), Drawer { kept, used_us: now_us });
            self.bytes.set(self.bytes.get() + DRAWER_BYTES);
        }
        let Some(drawer) = tenants.get_mut(tenant) else { return };
        let before = drawer.kept.weight();
        drawer.used_us = now_us;
        let outputs = Bytes::copy_from_slice(outputs);
        drawer.kept.insert(id, Kept { outputs, since_us: now_us, until_us: now_us.saturating_add(ttl_ms * 1000) });
        self.bytes.set(self.bytes.get() + drawer.kept.weight() - before);
        if self.bytes.get() > self.settings.shard_bytes_max {
            self.forget_the_idle(&mut tenants);
        }
    }

    /// Makes room for a while: a quarter of all there may be, so that tenants are not put in order for each entry.
    fn forget_the_idle(&self, tenants: &mut HashMap<Text, Drawer>) {
        let mut by_use: Vec<(u64, Text)> = tenants.iter().map(|(tenant, drawer)| (drawer.used_us, tenant.clone())).collect();
        by_use.sort_unstable();
        // Whoever came last stays, however little there may be.
        by_use.pop();
        for (_, tenant) in by_use {
            if self.bytes.get() <= self.settings.shard_bytes_max / 4 * 3 {
                break;
            }
            let gone = tenants.remove(&tenant).map_or(0, |drawer| drawer.kept.weight() + DRAWER_BYTES);
            self.bytes.set(self.bytes.get() - gone);
        }
    }
}

/// A block whose outputs may be there already. Lives on its core.
pub(super) struct Cached {
    inner: Rc<dyn Block>,
    cache: Rc<Cache>,
}

impl Cached {
    pub(super) fn new(inner: Rc<dyn Block>, cache: Rc<Cache>) -> Cached {
        Cached { inner, cache }
    }
}

impl Block for Cached {
    fn info(&self) -> &'static BlockInfo {
        self.inner.info()
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move {
            let Some(wish) = cx.cache.clone() else { return run(&*self.inner, cx).await };
            let (tenant, id) = (cx.tenant.clone(), id(self.inner.info(), &wish.key, &cx));
            if let Some(outputs) = self.cache.find(&tenant, &id, wish.ttl_ms) {
                return Ok(outputs);
            }
            let outputs = run(&*self.inner, cx).await?;
            if is_paid_for(self.inner.info().name) {
                self.cache.keep(&tenant, id, &for_nothing(&outputs), wish.ttl_ms);
            } else {
                self.cache.keep(&tenant, id, &outputs, wish.ttl_ms);
            }
            Ok(outputs)
        })
    }
}

async fn run(block: &dyn Block, cx: BlockCx) -> Result<Bytes, Fault> {
    match block.instant(&cx) {
        Some(result) => result,
        None => block.execute(cx).await,
    }
}

/// Outputs as they are given again: their cost was paid once.
fn for_nothing(outputs: &Bytes) -> Bytes {
    let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(outputs) else { return outputs.clone() };
    let amounts = value.get_mut("cost").and_then(serde_json::Value::as_object_mut);
    let Some(amounts) = amounts else { return outputs.clone() };
    amounts.values_mut().for_each(|amount| *amount = 0.into());
    Bytes::from(value.to_string())
}

/// Under what the outputs of a step are kept; the tenant has a drawer of its own.
fn id(info: &BlockInfo, key: &str, cx: &BlockCx) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in [info.name.as_bytes(), info.version.as_bytes(), key.as_bytes(), &cx.guardrails, &cx.inputs] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use shards::block::CacheWish;
    use shards::ids::Key;
    use shards::outcome::Code;
    use shards::runtime::rt;
    use shards::step::{EffectClass, Needs};

    use super::super::tests::on_a_shard;
    use super::*;

    static INFO: BlockInfo = BlockInfo { name: "count", aliases: &[], version: "1.0.0", effect: EffectClass::Pure };

    /// Answers how often it was run, in as many bytes as its inputs say; fails where they say "fail".
    #[derive(Default)]
    struct Count(Cell<u32>);

    impl Block for Count {
        fn info(&self) -> &'static BlockInfo {
            &INFO
        }

        fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
            self.0.set(self.0.get() + 1);
            Box::pin(async move {
                let text = std::str::from_utf8(&cx.inputs).expect("text").to_owned();
                match text.parse::<usize>() {
                    Ok(size) => Ok(Bytes::from(vec![b'0' + self.0.get() as u8; size])),
                    Err(_) => Err(Fault::new(Code::NetworkError, "No.")),
                }
            })
        }
    }

    struct Bench {
        block: Cached,
        blobs: Rc<super::super::local::LocalBlobs>,
        counts: Arc<CacheCounts>,
    }

    impl Bench {
        fn new(blobs: Rc<super::super::local::LocalBlobs>, tenant: u64, shard: u64) -> Bench {
            let settings = CacheSettings { tenant_bytes_max: tenant, shard_bytes_max: shard };
            let counts = Arc::new(CacheCounts::default());
            let cache = Rc::new(Cache::new(settings, Clock::start(), counts.clone()));
            Bench { block: Cached::new(Rc::new(Count::default()), cache), blobs, counts }
        }

        /// The number of the run that the outputs are of.
        async fn ask(&self, tenant: &'static str, inputs: &'static str, key: &'static str, ttl_ms: u64) -> Option<u32> {
            let cx = BlockCx {
                tenant: Text::from_static(tenant),
                key: Key([0; 16]),
                try_number: 1,
                left_ms: 60_000,
                needs: Needs::default(),
                inputs: Bytes::from_static(inputs.as_bytes()),
                guardrails: Bytes::new(),
                trace_id: None,
                cache: Some(CacheWish { key: Text::from_static(key), ttl_ms }),
                blobs: self.blobs.clone(),
                observers: None,
            };
            let outputs = self.block.execute(cx).await.ok()?;
            Some(u32::from(outputs[0] - b'0'))
        }
    }

    #[test]
    fn what_is_asked_again_in_time_is_there_and_nothing_else_is() {
        on_a_shard(|blobs, _| async move {
            let bench = Bench::new(blobs, 1 << 20, 1 << 20);
            let minute = 60_000;
            assert_eq!(bench.ask("acme", "1", "a", minute).await, Some(1));
            assert_eq!(bench.ask("acme", "1", "a", minute).await, Some(1), "it is there");
            assert_eq!(bench.ask("acme", "2", "a", minute).await, Some(2), "other inputs");
            assert_eq!(bench.ask("acme", "1", "b", minute).await, Some(3), "another name");
            assert_eq!(bench.ask("other", "1", "a", minute).await, Some(4), "another tenant");
            assert_eq!(bench.ask("acme", "fail", "a", minute).await, None);
            assert_eq!(bench.ask("acme", "fail", "a", minute).await, None, "a failure is not kept");
            rt::sleep(Duration::from_millis(30)).await;
            assert_eq!(bench.ask("acme", "1", "a", 10).await, Some(7), "whoever asks wants nothing as old as that");
            rt::sleep(Duration::from_millis(30)).await;
            assert_eq!(bench.ask("acme", "1", "a", minute).await, Some(8), "whoever brought it allowed no more");
            assert_eq!((bench.counts.hits.load(Relaxed), bench.counts.misses.load(Relaxed)), (1, 8));
        });
    }

    #[test]
    fn what_was_paid_for_costs_nothing_the_second_time() {
        let given = |text: &'static str| for_nothing(&Bytes::from_static(text.as_bytes()));
        assert_eq!(given(r#"{"text":"a","cost":{"USD":0.25}}"#), r#"{"cost":{"USD":0},"text":"a"}"#);
        assert_eq!(given(r#"{"text":"a" }"#), r#"{"text":"a" }"#);
    }

    #[test]
    fn a_tenant_keeps_so_much_and_puts_out_nothing_of_anothers() {
        on_a_shard(|blobs, _| async move {
            let bench = Bench::new(blobs, 4_096, 1 << 20);
            assert_eq!(bench.ask("quiet", "1", "a", 60_000).await, Some(1));
            assert_eq!(bench.ask("acme", "900", "a", 60_000).await, Some(2));
            assert_eq!(bench.ask("acme", "1000", "a", 60_000).await, Some(3), "too large to be kept");
            assert_eq!(bench.ask("acme", "1000", "a", 60_000).await, Some(4));
            for inputs in ["801", "802", "803", "804", "805", "806"] {
                bench.ask("acme", inputs, "a", 60_000).await;
            }
            let bytes = |tenant| bench.block.cache.tenants.borrow()[tenant].kept.weight();
            assert!(bytes("acme") <= 4_096 && bytes("acme") > 1_000, "{}", bytes("acme"));
            assert_eq!(bench.ask("quiet", "1", "a", 60_000).await, Some(1));
        });
    }

    #[test]
    fn a_shard_keeps_so_much_and_forgets_whoever_asked_for_nothing_for_the_longest_time() {
        on_a_shard(|blobs, _| async move {
            let bench = Bench::new(blobs, 4_096, 8_192);
            for tenant in ["a", "b", "c", "d", "e"] {
                bench.ask(tenant, "850", "k", 60_000).await;
            }
            let kept = |tenant| bench.block.cache.tenants.borrow().contains_key(tenant);
            assert_eq!(["a", "b", "c", "d", "e"].map(kept), [false, false, true, true, true]);
            assert!(bench.block.cache.bytes.get() <= 8_192, "{}", bench.block.cache.bytes.get());
            let none = Bench::new(bench.blobs.clone(), 0, 1 << 20);
            assert_eq!(none.ask("a", "1", "k", 60_000).await, Some(1));
            assert_eq!(none.ask("a", "1", "k", 60_000).await, Some(2), "nothing is kept at all");
        });
    }
}
