/** What TeX's commands for single signs stand for. */

/** @param {string} pairs names and signs in turn @returns {Object<string, string>} */
function signs(pairs) {
  const words = pairs.trim().split(/\s+/);
  return Object.fromEntries(
    words.flatMap((name, at) => (at % 2 === 0 ? [[`\\${name}`, /** @type {string} */ (words[at + 1])]] : [])),
  );
}

export const SYMBOLS = signs(`
  alpha α beta β gamma γ delta δ epsilon ϵ varepsilon ε zeta ζ eta η theta θ vartheta ϑ iota ι kappa κ lambda λ mu μ nu ν
  xi ξ omicron ο pi π varpi ϖ rho ρ varrho ϱ sigma σ varsigma ς tau τ upsilon υ phi ϕ varphi φ chi χ psi ψ omega ω
  Gamma Γ Delta Δ Theta Θ Lambda Λ Xi Ξ Pi Π Sigma Σ Upsilon Υ Phi Φ Psi Ψ Omega Ω ell ℓ hbar ℏ Re ℜ Im ℑ aleph ℵ
  times × cdot ⋅ div ÷ pm ± mp ∓ ast ∗ star ⋆ circ ∘ bullet ∙ oplus ⊕ ominus ⊖ otimes ⊗ odot ⊙ wedge ∧ land ∧ vee ∨ lor ∨
  cap ∩ cup ∪ setminus ∖ neg ¬ lnot ¬ le ≤ leq ≤ leqslant ⩽ ge ≥ geq ≥ geqslant ⩾ ne ≠ neq ≠ ll ≪ gg ≫ approx ≈ equiv ≡ sim ∼
  simeq ≃ cong ≅ propto ∝ in ∈ notin ∉ ni ∋ subset ⊂ subseteq ⊆ supset ⊃ supseteq ⊇ emptyset ∅ varnothing ∅ forall ∀ exists ∃
  nexists ∄ infty ∞ partial ∂ nabla ∇ angle ∠ triangle △ perp ⊥ parallel ∥ mid ∣ nmid ∤ vdash ⊢ models ⊨ top ⊤ bot ⊥
  to → rightarrow → leftarrow ← gets ← leftrightarrow ↔ Rightarrow ⇒ implies ⟹ Leftarrow ⇐ impliedby ⟸ Leftrightarrow ⇔ iff ⟺
  Longrightarrow ⟹ longrightarrow ⟶ mapsto ↦ uparrow ↑ downarrow ↓ ldots … dots … cdots ⋯ vdots ⋮ ddots ⋱ dotsc … dotsb ⋯
  prime ′ degree ° therefore ∴ because ∵ square □ blacksquare ■ checkmark ✓ dagger † colon : bmod mod mod mod
  langle ⟨ rangle ⟩ lfloor ⌊ rfloor ⌋ lceil ⌈ rceil ⌉ lvert | rvert | lVert ‖ rVert ‖ vert | Vert ‖ | ‖ lbrace { rbrace } lbrack [ rbrack ]
  { { } } % % $ $ # # & & _ _ backslash \\ cent ¢ pounds £ euro €
`);

/** Signs that grow, with what stands above and below them. */
export const LARGE = signs(`
  sum ∑ prod ∏ coprod ∐ bigcup ⋃ bigcap ⋂ bigoplus ⨁ bigotimes ⨂ bigvee ⋁ bigwedge ⋀ int ∫ iint ∬ iiint ∭ oint ∮
`);

/** Signs above or below something. @type {Object<string, [string, string]>} */
export const ACCENTS = {
  "\\hat": ["mover", "^"],
  "\\widehat": ["mover", "^"],
  "\\bar": ["mover", "¯"],
  "\\overline": ["mover", "‾"],
  "\\vec": ["mover", "→"],
  "\\overrightarrow": ["mover", "→"],
  "\\tilde": ["mover", "~"],
  "\\widetilde": ["mover", "~"],
  "\\dot": ["mover", "˙"],
  "\\ddot": ["mover", "¨"],
  "\\underline": ["munder", "_"],
};

export const FUNCTIONS = [
  ..."sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp deg dim ker arg hom".split(" "),
].map((name) => `\\${name}`);

/** Words with something below them. */
export const LIMITS = "lim max min sup inf gcd lcm det Pr limsup liminf argmax argmin".split(" ").map((name) => `\\${name}`);

/** @type {Object<string, string>} */
export const SPACES = {
  "\\,": "0.17em",
  "\\:": "0.22em",
  "\\;": "0.28em",
  "\\!": "0em",
  "\\ ": "0.33em",
  "\\quad": "1em",
  "\\qquad": "2em",
};

/** What changes nothing that is shown here. */
export const UNSEEN = "displaystyle textstyle scriptstyle nonumber notag hfill".split(" ").map((name) => `\\${name}`);

/** @type {Object<string, string>} */
export const BLACKBOARD = { C: "ℂ", E: "𝔼", F: "𝔽", H: "ℍ", N: "ℕ", P: "ℙ", Q: "ℚ", R: "ℝ", Z: "ℤ" };
