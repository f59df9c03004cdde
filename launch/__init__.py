"""From one cluster JSON to running workers and routers, and back to nothing."""
