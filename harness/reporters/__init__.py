"""Files made from records: tables and figures."""
