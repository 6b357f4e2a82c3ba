"""Speed and known truth, measured as ratios within one run."""
