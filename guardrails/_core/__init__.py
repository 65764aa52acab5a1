"""The state machine of circuit and slots. Takes time as an argument; must not read clocks, lock or wait."""
