//! Getting a vCPU out of the guest, from any thread.
//!
//! 1. A kicked vCPU leaves `KVM_RUN` with `EINTR` in a bounded time: at once when it is in the guest or halted, or on its
//!    next entry when it is between two.
//! 2. A kick stays in force until [`Kick::clear`]: no entry slips through between a check and the ioctl.
//! 3. An exit half done is completed by the entry that the kick cuts short (`Documentation/virt/kvm/api.rst`,
//!    `immediate_exit`), so a vCPU that has returned `EINTR` owes its guest nothing.

use std::io;
use std::sync::Once;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_ioctls::VcpuFd;
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, sigaction,
};

/// The signal that interrupts `KVM_RUN`. Its handler does nothing: being interrupted is all it is for.
const KICK_SIGNAL: Signal = Signal::SIGUSR2;

extern "C" fn interrupted(_: libc::c_int) {}

/// The `immediate_exit` byte of one vCPU's `kvm_run` page.
#[derive(Debug)]
pub struct Kick {
    immediate_exit: *const AtomicU8,
}

// SAFETY: the byte is only reached through atomic accesses.
unsafe impl Send for Kick {}
// SAFETY: as above.
unsafe impl Sync for Kick {}

impl Kick {
    /// Of `vcpu`, whose mapping must outlive the kick: the vCPU thread's owner keeps both together.
    pub fn new(vcpu: &mut VcpuFd) -> Self {
        install_handler();
        Self { immediate_exit: (&raw mut vcpu.get_kvm_run().immediate_exit).cast::<AtomicU8>().cast_const() }
    }

    fn byte(&self) -> &AtomicU8 {
        // SAFETY: points into the vCPU's kvm_run page, mapped as long as the vCPU thread's owner lives; the kernel and
        // other threads reach the byte at the same time, so it is treated as atomic.
        unsafe { &*self.immediate_exit }
    }

    /// Makes the present and every later entry return.
    pub fn set(&self) {
        self.byte().store(1, Ordering::SeqCst);
    }

    /// Lets the vCPU enter the guest again.
    pub fn clear(&self) {
        self.byte().store(0, Ordering::SeqCst);
    }

    /// Whether the kick is in force.
    pub fn is_set(&self) -> bool {
        self.byte().load(Ordering::SeqCst) != 0
    }
}

fn install_handler() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let action = SigAction::new(SigHandler::Handler(interrupted), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing, so it is async-signal-safe; nothing else here uses the signal.
        if let Err(error) = unsafe { sigaction(KICK_SIGNAL, &action) } {
            tracing::error!("installing the handler that stops vCPUs: {error}");
        }
    });
}

/// Makes sure that the calling (vCPU) thread can be kicked, whatever mask it inherited.
pub fn unblock_here() -> io::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(KICK_SIGNAL);
    pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&signals), None).map_err(io::Error::from)
}

/// Interrupts the thread with this kernel thread id.
pub fn interrupt(tid: i32) {
    // SAFETY: tgkill takes no pointers; a thread that is gone gives ESRCH, which means that it needs no kick.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, KICK_SIGNAL as libc::c_int) };
}
