//! The kernels by name, with the CUDA C that they are compiled from at run time. Nothing is compiled when the crate is built.

/// A source file that is compiled as one module. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Module {
    Sha256,
    Blake3,
    Image,
}

impl Module {
    pub(crate) const ALL: [Module; 3] = [Module::Sha256, Module::Blake3, Module::Image];

    /// What compiles, the prelude not included.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Module::Sha256 => include_str!("../kernels/sha256.cu"),
            Module::Blake3 => include_str!("../kernels/blake3.cu"),
            Module::Image => include_str!("../kernels/image.cu"),
        }
    }

    /// What a device's compiler is given.
    pub(crate) fn source(self) -> String {
        format!("{}\n{}", include_str!("../kernels/prelude.cuh"), self.text())
    }
}

/// Numbers that a kernel is given.
pub(crate) const ARGS: usize = 16;

/// One kernel. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kernel {
    Sha256,
    Blake3Chunks,
    Blake3Parents,
    Crop,
    Nearest,
    ResizeFirst,
    ResizeLast,
    Gray,
    Table,
    SwapRedBlue,
    Convert,
    Overlay,
}

impl Kernel {
    pub(crate) const ALL: [Kernel; 12] = [
        Kernel::Sha256,
        Kernel::Blake3Chunks,
        Kernel::Blake3Parents,
        Kernel::Crop,
        Kernel::Nearest,
        Kernel::ResizeFirst,
        Kernel::ResizeLast,
        Kernel::Gray,
        Kernel::Table,
        Kernel::SwapRedBlue,
        Kernel::Convert,
        Kernel::Overlay,
    ];

    /// As it is called in its source.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kernel::Sha256 => "sha256",
            Kernel::Blake3Chunks => "blake3_chunks",
            Kernel::Blake3Parents => "blake3_parents",
            Kernel::Crop => "crop",
            Kernel::Nearest => "nearest",
            Kernel::ResizeFirst => "resize_first",
            Kernel::ResizeLast => "resize_last",
            Kernel::Gray => "gray",
            Kernel::Table => "table",
            Kernel::SwapRedBlue => "swap_red_blue",
            Kernel::Convert => "convert",
            Kernel::Overlay => "overlay",
        }
    }

    pub(crate) fn module(self) -> Module {
        match self {
            Kernel::Sha256 => Module::Sha256,
            Kernel::Blake3Chunks | Kernel::Blake3Parents => Module::Blake3,
            _ => Module::Image,
        }
    }
}
