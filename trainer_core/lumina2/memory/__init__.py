"""All that saves memory: the estimate, the plan, recomputation, offloading and swapping."""
