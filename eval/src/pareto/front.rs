//! The points that no other beats.

/// Which direction is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Better {
    /// Fewer bytes.
    Lower,
    /// More tokens per second.
    Higher,
}

/// Indices of the points that no other equals or beats in both coordinates, in the order of `x`. Of `y`,
/// less is better.
pub(super) fn front(points: &[(f64, f64)], better_x: Better) -> Vec<usize> {
    let cost = |x: f64| if better_x == Better::Lower { x } else { -x };
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (points[a], points[b]);
        cost(a.0).total_cmp(&cost(b.0)).then(a.1.total_cmp(&b.1))
    });
    let mut best = f64::INFINITY;
    order.retain(|&i| {
        let beats = points[i].1 < best;
        best = best.min(points[i].1);
        beats
    });
    order.sort_by(|&a, &b| points[a].0.total_cmp(&points[b].0));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beaten_points_are_left_out() {
        let points = [(3.0, 1.0), (1.0, 5.0), (2.0, 2.0), (2.5, 2.5), (2.0, 3.0)];
        assert_eq!(front(&points, Better::Lower), [1, 2, 0]);
        // With speed on the axis, the fastest and the best remain.
        let points = [(100.0, 1.0), (200.0, 5.0), (150.0, 2.0), (120.0, 3.0)];
        assert_eq!(front(&points, Better::Higher), [0, 2, 1]);
        assert_eq!(front(&[], Better::Lower), [0; 0]);
    }

    #[test]
    fn of_equal_points_one_stays() {
        assert_eq!(front(&[(1.0, 1.0), (1.0, 1.0)], Better::Lower).len(), 1);
    }
}
