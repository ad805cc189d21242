"""Moving data: which bytes, the one mover, lanes to devices."""
