//! vcpu.
