//! A vCPU: its thread, how it is stopped, and its state.
//!
//! 1. [`plan`] does all that can be done before the guest stops; [`save`] and [`load`] are what is left in the downtime.
//! 2. [`save`] and [`load`] follow the one order in which KVM's side effects lose nothing.
//! 3. [`state`] is the wire form: [`load`] gives back what [`save`] read, byte for byte but for what runs by itself.
//! 4. [`unhalt`] makes up for what KVM keeps of a vCPU and does not show.
//! 5. [`standstill`] tells the guest's kernel that it stood, and for how long.
//! 6. [`thread`] runs the guest or is parked; [`kick`] gets it out; [`ioctls`] are the ones that `kvm-ioctls` lacks.

pub mod group;
pub mod ioctls;
pub mod kick;
pub mod load;
pub mod plan;
pub mod save;
pub mod standstill;
pub mod state;
pub mod thread;
pub mod unhalt;
