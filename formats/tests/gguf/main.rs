//! GGUF from outside: blocks hold what other programs decode them to, files say what was put in.

mod blocks;
mod reader;
mod writing;
