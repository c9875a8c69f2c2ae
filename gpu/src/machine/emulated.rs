//! The kernels themselves, compiled by the C compiler for this CPU, and the same steps that run on a CUDA device run with them.
//! For tests, which so prove the kernels' arithmetic, indices and bounds on machines without a GPU. What it cannot show is how
//! the driver is called.
//!
//! The compiler's checks for undefined behaviour are on and trap. Every piece of memory lies between guards that are looked
//! at when it is given back, is filled with rubbish first, and is counted.

use std::cell::Cell;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::sync::OnceLock;

use libloading::Library;

use super::{Arg, Machine};
use crate::device::Trouble;
use crate::kernels::{ARGS, Kernel, Module};

const PRELUDE: &str = include_str!("../../kernels/emulated.h");

/// Words before and after each piece of memory.
const GUARD_WORDS: usize = 8;
const GUARD: u64 = 0xfeed_beef_dead_c0de;
const RUBBISH: u64 = 0xa5a5_5a5a_c3c3_3c3c;

type Entry = unsafe extern "C" fn(*const [u64; ARGS], u32, u32);

fn compile() -> Library {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("kernels.so");
    let mut cc = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".to_owned()));
    cc.args(["-std=c11", "-O2", "-Wall", "-Werror", "-shared", "-fPIC"]);
    cc.args(["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error", "-o"]).arg(&library);
    for module in Module::ALL {
        let file = folder.path().join(format!("{module:?}.c"));
        std::fs::write(&file, format!("{PRELUDE}\n{}", module.text())).unwrap();
        cc.arg(file);
    }
    let made = cc.output().expect("a C compiler: make deps installs one");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    open(&library)
}

fn open(library: &Path) -> Library {
    // SAFETY: the library is what was compiled above; it has no initialisers.
    unsafe { Library::new(library) }.unwrap()
}

/// The kernels on this CPU. Lives on its thread.
pub(crate) struct Emulated {
    library: &'static Library,
    backwards: bool,
    counts: Rc<Counts>,
}

#[derive(Default)]
struct Counts {
    live: Cell<usize>,
    peak: Cell<usize>,
    runs: Cell<usize>,
    broken: Cell<usize>,
}

impl Emulated {
    /// Threads of a kernel run in order, or the last first.
    pub(crate) fn new(backwards: bool) -> Emulated {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        Emulated { library: LIBRARY.get_or_init(compile), backwards, counts: Rc::default() }
    }

    /// The most bytes that were held at once since this was last asked, once all is given back and no guard was touched.
    pub(crate) fn peak(&self) -> usize {
        assert_eq!(self.counts.broken.get(), 0, "a kernel wrote where it must not");
        assert_eq!(self.counts.live.get(), 0, "memory was not given back");
        self.counts.peak.replace(0)
    }

    /// Kernels that ran.
    pub(crate) fn runs(&self) -> usize {
        self.counts.runs.get()
    }
}

/// A piece of memory between guards.
pub(crate) struct Memory {
    words: Vec<u64>,
    bytes: usize,
    counts: Rc<Counts>,
}

impl Memory {
    fn new(bytes: usize, counts: &Rc<Counts>) -> Memory {
        let mut words = vec![GUARD; GUARD_WORDS];
        words.resize(GUARD_WORDS + bytes.div_ceil(8), RUBBISH);
        words.resize(2 * GUARD_WORDS + bytes.div_ceil(8), GUARD);
        counts.live.set(counts.live.get() + bytes);
        counts.peak.set(counts.peak.get().max(counts.live.get()));
        Memory { words, bytes, counts: counts.clone() }
    }

    fn start(&self) -> *const u8 {
        self.words[GUARD_WORDS..].as_ptr().cast()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let inner = GUARD_WORDS + self.bytes.div_ceil(8);
        let whole = |words: &[u64]| words.iter().all(|word| *word == GUARD);
        // The bytes after the last are still the rubbish's, up to a word.
        let tail = self.bytes.div_ceil(8) * 8 - self.bytes;
        let rest = RUBBISH.to_le_bytes();
        let end = if tail == 0 { true } else { self.words[inner - 1].to_le_bytes()[8 - tail..] == rest[8 - tail..] };
        if !whole(&self.words[..GUARD_WORDS]) || !whole(&self.words[inner..]) || !end {
            self.counts.broken.set(self.counts.broken.get() + 1);
        }
        self.counts.live.set(self.counts.live.get() - self.bytes);
    }
}

impl Machine for Emulated {
    type Memory = Memory;

    fn upload(&mut self, bytes: &[u8]) -> Result<Memory, Trouble> {
        let memory = Memory::new(bytes.len(), &self.counts);
        // SAFETY: the memory is as long, and nobody else has it yet.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory.start().cast_mut(), bytes.len()) };
        Ok(memory)
    }

    fn reserve(&mut self, bytes: usize) -> Result<Memory, Trouble> {
        Ok(Memory::new(bytes, &self.counts))
    }

    fn run(&mut self, kernel: Kernel, threads: u32, args: &[Arg<'_, Memory>]) -> Result<(), Trouble> {
        let mut numbers = [0_u64; ARGS];
        numbers[0] = u64::from(threads);
        assert!(args.len() < ARGS);
        for (number, arg) in numbers[1..].iter_mut().zip(args) {
            *number = match arg {
                Arg::At(memory) => memory.start().expose_provenance() as u64,
                Arg::Is(number) => *number,
            };
        }
        let name = format!("emulated_{}\0", kernel.name());
        // SAFETY: every kernel was compiled with this signature.
        let entry = unsafe { self.library.get::<Entry>(name.as_bytes()) }.unwrap();
        // As on a device, the last block has threads without work.
        let blocks = threads.next_multiple_of(crate::limits::BLOCK_THREADS);
        // SAFETY: the arguments live for the call, and the memory they name as long as `args` does.
        unsafe { entry(&numbers, blocks, u32::from(self.backwards)) };
        self.counts.runs.set(self.counts.runs.get() + 1);
        Ok(())
    }

    fn download(&mut self, memory: &Memory, bytes: usize) -> Result<Vec<u8>, Trouble> {
        assert!(bytes <= memory.bytes);
        // SAFETY: the memory is that long, and nothing writes it meanwhile.
        Ok(unsafe { std::slice::from_raw_parts(memory.start(), bytes) }.to_vec())
    }
}
