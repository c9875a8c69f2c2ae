//! A CUDA device: the driver and the compiler are found when the process runs, and the kernels are compiled then, for the device
//! that is there. One stream for each [`Cuda`]; several of them, on threads of their own, share the device's context.
//!
//! Without a driver every call into it panics, so it is asked for first, and opening is guarded against what panics all the
//! same (a driver without a function that is called, say).

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, DriverError, LaunchConfig, PushKernelArg, sys,
};
use cudarc::nvrtc::{self, CompileOptions, Ptx};

use super::{Device, DeviceKind, Missing, Trouble};
use crate::cache::{Cache, Key};
use crate::image::Image;
use crate::job::{Algorithm, Digest};
use crate::kernels::{ARGS, Kernel, Module};
use crate::limits::BLOCK_THREADS;
use crate::machine::{self, Arg, Machine};
use crate::plan::Step;
use crate::seat::said;

/// What opens a device. Crosses cores.
#[derive(Clone)]
pub(crate) struct CudaPlan {
    pub(crate) ordinal: usize,
    pub(crate) cache: Arc<Cache>,
}

/// A stream of a device. Lives on its thread.
pub(crate) struct Cuda {
    name: Arc<str>,
    // Before the context: what is in a context goes before it does.
    functions: HashMap<Kernel, CudaFunction>,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}

/// How many devices there are; at least one.
pub(crate) fn count() -> Result<usize, Missing> {
    present()?;
    guarded(|| match CudaContext::device_count() {
        Ok(count) if count > 0 => Ok(count as usize),
        Ok(_) => Err(Missing::Device("the driver knows no device".to_owned())),
        Err(error) => Err(missing(error)),
    })
}

/// Whether both libraries are there. Nothing else may be called before this says so.
fn present() -> Result<(), Missing> {
    // SAFETY: loads a library and lets it go again; the initialisers of NVIDIA's libraries have no demands on their callers.
    if !unsafe { sys::is_culib_present() } {
        return Err(Missing::Driver);
    }
    // SAFETY: as above.
    if !unsafe { nvrtc::sys::is_culib_present() } {
        return Err(Missing::Compiler);
    }
    Ok(())
}

fn guarded<T>(open: impl FnOnce() -> Result<T, Missing>) -> Result<T, Missing> {
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|panic| Err(Missing::Device(said(&*panic))))
}

fn missing(error: DriverError) -> Missing {
    Missing::Device(error.to_string())
}

impl Device for Cuda {
    type Plan = CudaPlan;

    fn open(plan: &CudaPlan) -> Result<Cuda, Missing> {
        present()?;
        guarded(|| {
            let context = CudaContext::new(plan.ordinal).map_err(missing)?;
            // A thread that waits for its device leaves its core to others.
            context.set_blocking_synchronize().map_err(missing)?;
            // SAFETY: events order the use of memory between streams; all memory of this context object is made, used and
            // given back on the one stream below, which is in order by itself.
            unsafe { context.disable_event_tracking() };
            let stream = context.new_stream().map_err(missing)?;
            let name = context.name().map_err(missing)?;
            let capability = context.compute_capability().map_err(missing)?;
            let compiler = compiler()?;
            let arch = architecture(capability.0 * 10 + capability.1);
            let mut functions = HashMap::new();
            for module in Module::ALL {
                let loaded = load(&context, &plan.cache, module, &arch, compiler)?;
                for kernel in Kernel::ALL.into_iter().filter(|kernel| kernel.module() == module) {
                    functions.insert(kernel, loaded.load_function(kernel.name()).map_err(missing)?);
                }
            }
            Ok(Cuda { name: name.into(), functions, stream, context })
        })
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Cuda
    }

    fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    fn hash(&mut self, algorithm: Algorithm, buffers: &[&Bytes]) -> Result<Vec<Digest>, Trouble> {
        machine::hash(self, algorithm, buffers)
    }

    fn render(&mut self, image: &Image, steps: &[Step]) -> Result<Image, Trouble> {
        machine::render(self, image, steps)
    }
}

/// The compiler's version.
fn compiler() -> Result<(i32, i32), Missing> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both numbers live for the call, which writes nothing else.
    match unsafe { nvrtc::sys::nvrtcVersion(&mut major, &mut minor) } {
        nvrtc::sys::nvrtcResult::NVRTC_SUCCESS => Ok((major, minor)),
        error => Err(Missing::Device(format!("the compiler does not tell its version: {error:?}"))),
    }
}

/// What to compile for: the newest that the compiler knows and the device runs. A driver compiles older code for newer devices.
fn architecture(device: i32) -> String {
    let mut count = 0;
    // SAFETY: the number lives for the call, which writes nothing else.
    let counted = unsafe { nvrtc::sys::nvrtcGetNumSupportedArchs(&mut count) };
    let mut known = vec![0; usize::try_from(count).unwrap_or(0)];
    if counted == nvrtc::sys::nvrtcResult::NVRTC_SUCCESS && !known.is_empty() {
        // SAFETY: there is room for as many as the call before said.
        let listed = unsafe { nvrtc::sys::nvrtcGetSupportedArchs(known.as_mut_ptr()) };
        if listed != nvrtc::sys::nvrtcResult::NVRTC_SUCCESS {
            known.clear();
        }
    }
    let best = known.into_iter().filter(|arch| (1..=device).contains(arch)).max().unwrap_or(device);
    format!("compute_{best}")
}

/// A module of kernels: what is kept of it, or compiled anew where that does not load.
fn load(
    context: &Arc<CudaContext>,
    cache: &Cache,
    module: Module,
    arch: &str,
    compiler: (i32, i32),
) -> Result<Arc<cudarc::driver::CudaModule>, Missing> {
    let source = module.source();
    let key = Key::of(&source, arch, compiler);
    let compile = || compile(module, &source, arch);
    let text = cache.get(&key, compile)?;
    context.load_module(Ptx::from_src(&*text)).or_else(|_| {
        cache.forget(&key);
        let text = cache.get(&key, compile)?;
        context.load_module(Ptx::from_src(&*text)).map_err(missing)
    })
}

fn compile(module: Module, source: &str, arch: &str) -> Result<String, Missing> {
    let options = CompileOptions { options: vec![format!("--gpu-architecture={arch}")], ..CompileOptions::default() };
    nvrtc::compile_ptx_with_opts(source, options)
        .map(|ptx| ptx.to_src())
        .map_err(|error| Missing::Device(format!("the kernels of {module:?} do not compile: {error}")))
}

impl Cuda {
    /// What an error means: no memory is this batch's trouble alone, everything else may have broken the context.
    fn trouble(&self, error: DriverError) -> Trouble {
        if error.0 == sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY {
            // An error that was noted when memory was given back is the same one.
            let _ = self.context.check_err();
            return Trouble::Failed("the device has no memory left".to_owned());
        }
        Trouble::Lost(error.to_string())
    }

    fn memory(&self, bytes: usize) -> Result<CudaSlice<u8>, Trouble> {
        // SAFETY: what is in it is not known, and everything that is asked for is written before it is read: by an upload, or
        // by the kernel that runs next, each of whose threads writes its part of it.
        unsafe { self.stream.alloc::<u8>(bytes.max(1)) }.map_err(|error| self.trouble(error))
    }
}

impl Machine for Cuda {
    type Memory = CudaSlice<u8>;

    fn upload(&mut self, bytes: &[u8]) -> Result<CudaSlice<u8>, Trouble> {
        let mut memory = self.memory(bytes.len())?;
        if !bytes.is_empty() {
            // The bytes lie in pageable memory: the driver has copied them when this returns.
            self.stream.memcpy_htod(bytes, &mut memory).map_err(|error| self.trouble(error))?;
        }
        Ok(memory)
    }

    fn reserve(&mut self, bytes: usize) -> Result<CudaSlice<u8>, Trouble> {
        self.memory(bytes)
    }

    fn run(&mut self, kernel: Kernel, threads: u32, args: &[Arg<'_, CudaSlice<u8>>]) -> Result<(), Trouble> {
        if threads == 0 {
            return Ok(());
        }
        let mut numbers = [0_u64; ARGS];
        numbers[0] = u64::from(threads);
        for (number, arg) in numbers[1..].iter_mut().zip(args) {
            *number = match arg {
                // The guard orders streams by events, which are off: there is one stream.
                Arg::At(memory) => memory.device_ptr(&self.stream).0,
                Arg::Is(number) => *number,
            };
        }
        let Some(function) = self.functions.get(&kernel) else {
            return Err(Trouble::Failed(format!("no kernel {}", kernel.name())));
        };
        let grid = LaunchConfig {
            grid_dim: (threads.div_ceil(BLOCK_THREADS), 1, 1),
            block_dim: (BLOCK_THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: every kernel takes one argument of this size, by value. The addresses in it are of memory of this stream's
        // that is given back on this stream, so after the kernel. That no thread leaves its memory is checked on the CPU.
        unsafe { self.stream.launch_builder(function).arg(&numbers).launch(grid) }.map_err(|error| self.trouble(error))?;
        Ok(())
    }

    fn download(&mut self, memory: &CudaSlice<u8>, bytes: usize) -> Result<Vec<u8>, Trouble> {
        let mut out = vec![0; bytes];
        let part = memory.try_slice(..bytes).ok_or_else(|| Trouble::Failed("more was read than there is".to_owned()))?;
        if bytes > 0 {
            self.stream.memcpy_dtoh(&part, &mut out).map_err(|error| self.trouble(error))?;
        }
        // Whatever a kernel did wrong is told here at the latest.
        self.stream.synchronize().map_err(|error| self.trouble(error))?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs the compiler's library, which runs without a device and without a driver.
    #[test]
    fn the_device_compiler_takes_the_kernels() {
        // SAFETY: as in `present`.
        if !unsafe { nvrtc::sys::is_culib_present() } {
            eprintln!("SKIPPED the_device_compiler_takes_the_kernels: libnvrtc.so.12 is not found");
            return;
        }
        assert!(compiler().unwrap() >= (11, 0));
        for arch in [75, 80, 90, 1_000].map(architecture) {
            for module in Module::ALL {
                let text = compile(module, &module.source(), &arch).unwrap();
                for kernel in Kernel::ALL.into_iter().filter(|kernel| kernel.module() == module) {
                    assert!(text.contains(&format!(".entry {}(", kernel.name())), "{} for {arch}", kernel.name());
                }
            }
        }
        assert!(compile(Module::Image, "no code", &architecture(90)).is_err());
    }
}
