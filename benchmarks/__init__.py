"""Side-by-side measurements against other trainers; see RESULTS.md."""
