"""How often bits stand in tensors, what their elements sum up to, how far two lie apart; nothing here needs torch."""
