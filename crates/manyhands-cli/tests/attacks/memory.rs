//! Clients that announce, park, hoard or do not read: the server stays within its limit of memory.
