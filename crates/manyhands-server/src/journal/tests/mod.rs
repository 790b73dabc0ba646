mod damage;
mod disk;
mod process;
mod random;
mod replica;
mod room;
mod simulation;
