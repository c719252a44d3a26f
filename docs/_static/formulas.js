// Replaces the TeX of every formula by what KaTeX makes of it. TeX that KaTeX cannot read stays, in red.
for (const formula of document.querySelectorAll(".formula")) {
  katex.render(formula.textContent, formula, {
    displayMode: formula.tagName === "DIV",
    throwOnError: false,
  });
}
