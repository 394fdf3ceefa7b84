// Draws the diagrams in the page's colours, lets the keyboard scroll what is wide, and copies code.
(() => {
  const root = document.documentElement.dataset.content_root ?? "./";

  const dark = () => {
    const chosen = document.body.dataset.theme;
    return chosen === "dark" || (chosen !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  };

  const draw = async () => {
    const diagrams = [...document.querySelectorAll("pre.mermaid")];
    for (const diagram of diagrams) {
      diagram.dataset.text ??= diagram.textContent;
      diagram.removeAttribute("data-processed");
      diagram.textContent = diagram.dataset.text;
    }
    window.mermaid.initialize({ startOnLoad: false, theme: dark() ? "dark" : "default", fontFamily: "inherit" });
    await window.mermaid.run({ nodes: diagrams });
  };

  if (document.querySelector("pre.mermaid")) {
    const script = document.createElement("script");
    script.src = `${root}_static/mermaid.js`;
    script.onload = () => {
      draw();
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
      new MutationObserver(draw).observe(document.body, { attributeFilter: ["data-theme"] });
    };
    document.head.append(script);
  }

  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "Pages");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "On this page");

  for (const wide of document.querySelectorAll(".highlight pre, .table-wrapper, .diagram")) {
    if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0;
  }

  for (const block of document.querySelectorAll("div.highlight")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy-code";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      const text = block.querySelector("pre").textContent;
      const commands = text.split("\n").filter((line) => line.startsWith("$ "));
      const wanted = block.parentElement.className.includes("console") && commands.length > 0;
      await navigator.clipboard.writeText(wanted ? commands.map((line) => line.slice(2)).join("\n") + "\n" : text);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
    block.append(button);
  }
})();
