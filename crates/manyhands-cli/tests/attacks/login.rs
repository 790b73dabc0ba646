//! Floods before login, reflections, and newcomers at the limit of connections.
