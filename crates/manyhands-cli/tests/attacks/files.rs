//! What other users of the machine can read, and a disk that is full or damaged.
