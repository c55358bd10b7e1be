//! Size, quality and speed of several files in one report: as a table, as JSON, and as a page with
//! plots.

mod axis;
mod charts;
mod compare;
mod front;
mod html;
mod labels;
mod peers;
mod report;
mod svg;
mod table;
#[cfg(test)]
mod testing;

pub use compare::{Compared, ParetoComparison, compare_pareto};
pub use peers::{Peer, PeerSpeed, Peers, PeersError};
pub use report::{ParetoPoint, ParetoQuality, ParetoReport, ParetoSpeed, PointMemory, PointSpeed};
