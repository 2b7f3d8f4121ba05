//! The server against hostile clients.
