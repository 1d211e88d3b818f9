"""Where cases run: processes of this machine (`local`), or engines that spread them over many."""
