"""What ought to change: snapshot in, plan out. No I/O, no clock, no randomness here."""
