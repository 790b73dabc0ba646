//! Many clients that leave at one time: the verdicts on them take neither the stack nor the engine.
