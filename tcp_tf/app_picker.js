// A row of small pictures to choose from. Gradio calls this as it calls app_stage.js. props.items: [{url, name}], from
// Python; props.value: the number of the chosen one, from either side; the event "choose" tells Python of a new choice.
const list = element.querySelector(".picker");

function fill() {
  list.replaceChildren(
    ...(props.items || []).map((item, number) => {
      const button = document.createElement("button");
      const image = document.createElement("img");
      button.type = "button";
      button.title = item.name;
      button.setAttribute("aria-label", item.name);
      image.src = item.url;
      image.alt = "";
      button.append(image);
      button.onclick = () => {
        props.value = number;
        mark();
        queueMicrotask(() => trigger("choose"));
      };
      return button;
    })
  );
  mark();
}

function mark() {
  [...list.children].forEach((button, number) => {
    button.classList.toggle("on", number === props.value);
    button.setAttribute("aria-pressed", String(number === props.value));
  });
}

watch("items", fill);
watch("value", mark);
fill();
