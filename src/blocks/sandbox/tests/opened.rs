//! Has the kernel count what a thread opens: files, sockets, rings. Each attempt is refused, so nothing that needs one goes unnoticed
//! either. The thread stays watched to its end.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// Attempts of watched threads, over the whole process.
static OPENED: AtomicU32 = AtomicU32::new(0);

/// What opens something. A ring opens files and sockets behind the kernel's back, so it counts whatever it does.
const OPENING: &[libc::c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_creat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_accept4,
    libc::SYS_memfd_create,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// A thread that is watched: the one that began it.
pub(super) struct Watch(());

impl Watch {
    /// Watches this thread from now on; none where the kernel does not allow it.
    #[expect(unsafe_code, reason = "seccomp and its signal have no other interface")]
    pub(super) fn begin() -> Option<Watch> {
        let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
        // The number of the system call is the first member of what a filter sees.
        let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
        for call in OPENING {
            let code = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
            program.push(libc::sock_filter { code, jt: 0, jf: 1, k: *call as u32 });
            program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_TRAP));
        }
        program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
        let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: the action and the filter are whole and live until the calls return; the handler only touches an atomic and
        // the context that it is given.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = counted as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO;
            if libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) != 0
                || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) != 0
            {
                return None;
            }
        }
        Some(Watch(()))
    }

    /// How much was opened so far, or was to be.
    pub(super) fn opened(&self) -> u32 {
        OPENED.load(SeqCst)
    }
}

/// Counts, and has the call come back as one that is not permitted.
#[expect(unsafe_code, reason = "what a call comes back with stands in the context of its signal")]
extern "C" fn counted(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    OPENED.fetch_add(1, SeqCst);
    // SAFETY: the kernel gives the context of the thread that this runs on.
    unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        #[cfg(target_arch = "x86_64")]
        {
            context.uc_mcontext.gregs[libc::REG_RAX as usize] = -i64::from(libc::EPERM);
        }
        #[cfg(target_arch = "aarch64")]
        {
            context.uc_mcontext.regs[0] = -i64::from(libc::EPERM) as u64;
        }
    }
}
