//! The offload thread: one tokio runtime, on no shard's core, for clients that cannot run on a shard. Today: the resolver, and
//! the reading of the system's roots. Object stores have a thread of their own beside it ([`stores`]), so that no transfer holds a
//! lookup up.
//!
//! Shards ask with a [`Job`] and wait for its answer; nobody waits for the thread itself. The queue is bounded, and so are the
//! lookups under way: who comes beyond that is told at once.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{Resolver, TokioResolver};
use tokio::sync::Semaphore;

use crate::net::tls::{self, Trust};

pub mod sqlite;
pub mod stores;

/// Jobs that wait for the thread.
const QUEUE_MAX: usize = 4_096;
/// Lookups under way.
const LOOKUPS_MAX: usize = 1_024;
/// How long one name server may take, and how often it is asked.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
const LOOKUP_ATTEMPTS: usize = 2;
/// Names that the resolver remembers, for as long as their own times say and no longer than this.
const REMEMBERED: u64 = 16_384;
const REMEMBERED_FOR: Duration = Duration::from_secs(300);
const NO_NAME_FOR: Duration = Duration::from_secs(5);

/// What a shard may ask for. Crosses cores.
pub enum Job {
    /// The addresses of a name.
    Resolve {
        /// Lower case, without a trailing dot.
        name: String,
        /// Who waits.
        answer: flume::Sender<Resolved>,
    },
    /// The roots that the system trusts.
    Roots {
        /// Who waits.
        answer: flume::Sender<Result<Trust, String>>,
    },
}

/// What the resolver says. Crosses cores.
pub type Resolved = Result<Addresses, NoAddress>;

/// The addresses of a name. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// All of them, those of both families; never empty.
    pub list: Vec<IpAddr>,
    /// For how long they are said to hold, in milliseconds.
    pub hold_ms: u64,
}

/// Why there is none. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAddress {
    /// There is no such name.
    NoSuchName,
    /// Nobody could say.
    Unknown(String),
    /// Too many ask.
    Full,
}

/// The way to the thread, which starts with the first that asks: most workers need none. Crosses cores; cloned for each that
/// asks.
#[derive(Clone)]
pub struct Offload(Arc<State>);

struct State {
    servers: Vec<SocketAddr>,
    jobs: OnceLock<flume::Sender<Job>>,
}

impl Offload {
    /// `servers` are asked instead of those that the system names, where there are any.
    pub fn new(servers: Vec<SocketAddr>) -> Offload {
        Offload(Arc::new(State { servers, jobs: OnceLock::new() }))
    }

    fn jobs(&self) -> &flume::Sender<Job> {
        self.0.jobs.get_or_init(|| {
            let (jobs, asked) = flume::bounded(QUEUE_MAX);
            let servers = self.0.servers.clone();
            // Without a thread or a runtime nobody is answered, and whoever asks is told that the thread has gone.
            let started = std::thread::Builder::new().name("offload".to_owned()).spawn(move || {
                match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime.block_on(serve(asked, servers)),
                    Err(error) => tracing::error!(%error, "no runtime for the resolver: no name can be looked up"),
                }
            });
            if let Err(error) = started {
                tracing::error!(%error, "no thread for the resolver: no name can be looked up");
            }
            jobs
        })
    }

    /// The addresses of `name`.
    ///
    /// # Errors
    /// There are none, or nobody could say.
    pub async fn resolve(&self, name: String) -> Resolved {
        let (answer, waiting) = flume::bounded(1);
        self.jobs().try_send(Job::Resolve { name, answer }).map_err(|_| NoAddress::Full)?;
        waiting.recv_async().await.unwrap_or_else(|_| Err(NoAddress::Unknown("the resolver has gone".to_owned())))
    }

    /// What the system trusts; read once, by whoever needs it first.
    ///
    /// # Errors
    /// There is nothing, or it cannot be read.
    pub async fn roots(&self) -> Result<Trust, String> {
        let (answer, waiting) = flume::bounded(1);
        self.jobs().try_send(Job::Roots { answer }).map_err(|_| "the offload thread is full".to_owned())?;
        waiting.recv_async().await.unwrap_or_else(|_| Err("the offload thread has gone".to_owned()))
    }
}

async fn serve(asked: flume::Receiver<Job>, servers: Vec<SocketAddr>) {
    let resolver: Result<Arc<TokioResolver>, String> = resolver(&servers).map(Arc::new);
    let under_way = Arc::new(Semaphore::new(LOOKUPS_MAX));
    let mut roots: Option<Result<Trust, String>> = None;
    while let Ok(job) = asked.recv_async().await {
        match job {
            Job::Resolve { name, answer } => {
                let Ok(place) = under_way.clone().try_acquire_owned() else {
                    let _ = answer.send(Err(NoAddress::Full));
                    continue;
                };
                match resolver.clone() {
                    Ok(resolver) => {
                        tokio::spawn(async move {
                            let _ = answer.send(look_up(&resolver, &name).await);
                            drop(place);
                        });
                    }
                    Err(why) => _ = answer.send(Err(NoAddress::Unknown(why))),
                }
            }
            Job::Roots { answer } => {
                let roots = roots.get_or_insert_with(tls::system);
                let _ = answer.send(roots.clone());
            }
        }
    }
}

fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, String> {
    let mut builder = if servers.is_empty() {
        TokioResolver::builder_tokio().map_err(|error| error.to_string())?
    } else {
        let servers = servers.iter().map(|server| {
            let mut config = NameServerConfig::udp_and_tcp(server.ip());
            for connection in &mut config.connections {
                connection.port = server.port();
            }
            config
        });
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
        Resolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    let options: &mut ResolverOpts = builder.options_mut();
    options.timeout = LOOKUP_TIMEOUT;
    options.attempts = LOOKUP_ATTEMPTS;
    options.cache_size = REMEMBERED;
    options.positive_max_ttl = Some(REMEMBERED_FOR);
    options.negative_max_ttl = Some(NO_NAME_FOR);
    options.ip_strategy = hickory_resolver::config::LookupIpStrategy::Ipv4AndIpv6;
    builder.build().map_err(|error| error.to_string())
}

async fn look_up(resolver: &TokioResolver, name: &str) -> Resolved {
    // A name with a dot in it is the whole name: none is looked for in the system's own domains. One without is what an operator
    // opened by an allow list.
    let whole = if name.contains('.') { format!("{name}.") } else { name.to_owned() };
    match resolver.lookup_ip(whole).await {
        Ok(found) => {
            let hold = found.valid_until().saturating_duration_since(Instant::now());
            let list: Vec<IpAddr> = found.iter().collect();
            match list.is_empty() {
                true => Err(NoAddress::NoSuchName),
                false => Ok(Addresses { list, hold_ms: hold.as_millis() as u64 }),
            }
        }
        Err(error) if error.is_no_records_found() || error.is_nx_domain() => Err(NoAddress::NoSuchName),
        Err(error) => Err(NoAddress::Unknown(error.to_string())),
    }
}
