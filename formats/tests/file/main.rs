//! The packed file from outside: what is written is read back, and what is damaged, cut off or hostile
//! is an error and never a panic.

mod codecs;
mod damage;
mod hostile;
mod model;
mod sample;
mod writing;
