"""What a tensor is: immutable nodes, one frozen class per op, simplifications as the graph grows."""
