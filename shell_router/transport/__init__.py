"""How agents reach engines: the seam (`base`), its HTTP form (`http`), sessions (`resend`) and a fake (`fake`)."""
