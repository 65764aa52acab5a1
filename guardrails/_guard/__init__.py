"""One dependency at run time: its gate, its calls, its compartments."""
