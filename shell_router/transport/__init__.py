"""How agents reach engines: the seam (`base`), its HTTP form (`http`), sessions (`incremental`,
`resend`) and a fake (`fake`)."""
