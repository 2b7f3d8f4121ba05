//! Interrupt lines into KVM's interrupt chips.

use std::sync::Arc;

use kvm_ioctls::VmFd;

use crate::devices::IrqLine;

/// One global system interrupt.
///
/// Driven by `KVM_IRQ_LINE`, which returns when the chips have seen it. An irqfd would go through a work queue, and an
/// interrupt could be in flight while the chips are being saved.
pub(super) struct GsiLine {
    vm: Arc<VmFd>,
    gsi: u32,
}

impl GsiLine {
    pub(super) fn line(vm: &Arc<VmFd>, gsi: u32) -> Arc<dyn IrqLine> {
        Arc::new(Self { vm: Arc::clone(vm), gsi })
    }
}

impl IrqLine for GsiLine {
    fn set(&self, high: bool) {
        if let Err(error) = self.vm.set_irq_line(self.gsi, high) {
            tracing::error!(
                "driving interrupt line {} {}: {error}",
                self.gsi,
                if high { "high" } else { "low" }
            );
        }
    }
}
