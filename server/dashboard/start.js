document.getElementById('model').textContent = (await getJson('/v1/models')).data[0].id;
