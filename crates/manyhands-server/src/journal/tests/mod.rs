pub(crate) mod beside;
mod damage;
pub(crate) mod disk;
mod process;
pub(crate) mod random;
mod replica;
mod room;
mod simulation;
