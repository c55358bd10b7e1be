//! Every kernel of every instruction-set class that this CPU has, against naive oracles: products to
//! the last bit, elementwise mathematics and attention within stated tolerances, and all classes
//! against each other to the last bit.

mod attention;
mod dispatch;
mod elementwise;
mod extremes;
mod matmul;
mod oracle;
mod quantize;
