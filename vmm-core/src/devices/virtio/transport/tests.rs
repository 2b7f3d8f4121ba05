//! The transport with a device that answers when it is told to, and a driver that writes its registers.

mod driver;
mod function;
mod hostile;
mod state;
