"""What follows from spec and plan for each training engine, as plain settings; no engine is imported here."""
