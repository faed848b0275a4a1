//! The script against a model of it, on a real server.
