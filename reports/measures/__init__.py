"""What reports say of each measure, a file for each; `reports.section` finds them by their names."""
