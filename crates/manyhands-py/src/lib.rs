//! Home of the Python wheel `manyhands`.
//!
//! Empty for now: unmodified Python *workers* and masters that `connect()` need no package of ours,
//! because the server speaks CPython's own protocol. The drop-in for masters that `start()` comes here.
