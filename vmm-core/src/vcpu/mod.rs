//! A vCPU's state: read from KVM, written to KVM, and the wire form between.
//!
//! 1. [`save`] reads and [`load`] writes in the orders that KVM's dependencies give; each says why.
//! 2. What can be found out while the guest runs is found out then, once a VM: [`plan::VcpuPlan`].
//! 3. `ioctls` is the only unsafe code here.

pub mod ioctls;
pub mod load;
pub mod plan;
pub mod save;
pub mod state;
